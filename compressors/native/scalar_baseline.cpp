#define LANES 4
#define NAME kScalarBaseline
#include "scalar_body.hpp"
