#define DIINN_ISA avx512
#include "kernels.h"
