#define LANES 16
#define NAME kScalarAvx512
#include "scalar_body.hpp"
