#define LANES 8
#define NAME kScalarAvx2
#include "scalar_body.hpp"
