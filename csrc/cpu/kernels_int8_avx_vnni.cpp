#define DIINN_ISA int8_avx_vnni
#define DIINN_NAME "avx_vnni"
#define DIINN_BASE "avx2"
#include "kernels_int8.h"
