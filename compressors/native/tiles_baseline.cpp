// What any x86-64 (SSE2) and any ARM64 (NEON) runs.
#define LANES 4
#define NAME kBaseline
#define LABEL "baseline"
#include "tiles_body.hpp"
