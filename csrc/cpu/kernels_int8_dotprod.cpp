#define DIINN_ISA int8_dotprod
#define DIINN_NAME "dotprod"
#define DIINN_BASE "portable"
#include "kernels_int8.h"
