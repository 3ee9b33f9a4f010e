#define DIINN_ISA int8_avx2
#define DIINN_NAME "avx2"
#define DIINN_BASE "avx2"
#include "kernels_int8.h"
