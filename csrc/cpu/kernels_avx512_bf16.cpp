#define DIINN_ISA avx512_bf16
#define DIINN_NAME "avx512_bf16"
#include "kernels_bf16.h"
