#define LANES 8
#define NAME kAvx2
#define LABEL "avx2"
#include "tiles_body.hpp"
