// The instruction sets that are built and those that this processor has.
#pragma once

#include <string>
#include <vector>

#include "loops.h"

namespace ragq {

std::vector<std::string> built_sets();
std::vector<std::string> available_sets();  // slowest first
const Loops& loops_of(const std::string& name);  // throws std::invalid_argument

}  // namespace ragq
