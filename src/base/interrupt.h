// Ctrl-C and SIGTERM as a flag that long work polls: once = save and stop, twice = leave at once.
#pragma once

namespace fathom {

void install_interrupt_handler();
[[nodiscard]] bool interrupted();
// For a prompt that outlives Ctrl-C: true when it was pressed since the last call, and forgets it. SIGTERM is not forgotten.
[[nodiscard]] bool take_interrupt();
// Throws Error{kInterrupted} when interrupted() is true.
void throw_if_interrupted();

}  // namespace fathom
