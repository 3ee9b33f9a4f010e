#define DIINN_ISA int8_amx
#define DIINN_NAME "amx"
#define DIINN_BASE "avx512"
#include "kernels_int8.h"
