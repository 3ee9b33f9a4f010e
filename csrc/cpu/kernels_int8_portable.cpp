#define DIINN_ISA int8_portable
#define DIINN_NAME "portable"
#define DIINN_BASE "portable"
#define DIINN_EXACT_FMA  // the same bits as the others, by the C library if need be
#include "kernels_int8.h"
