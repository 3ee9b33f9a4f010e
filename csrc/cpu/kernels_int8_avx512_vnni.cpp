#define DIINN_ISA int8_avx512_vnni
#define DIINN_NAME "avx512_vnni"
#define DIINN_BASE "avx512"
#include "kernels_int8.h"
