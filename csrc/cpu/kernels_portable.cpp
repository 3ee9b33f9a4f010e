#define DIINN_ISA portable
#include "kernels.h"
