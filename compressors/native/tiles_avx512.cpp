#define LANES 16
#define NAME kAvx512
#define LABEL "avx512"
#include "tiles_body.hpp"
