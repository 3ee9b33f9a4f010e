#define DIINN_ISA amx_bf16
#define DIINN_NAME "amx"
#include "kernels_bf16.h"
