#include <iostream>

#include "absl/flags/flag.h"
#include "tools/cli/commands.h"
#include "tools/cli/inspect.h"
