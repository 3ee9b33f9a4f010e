#define DIINN_ISA avx2
#include "kernels.h"
