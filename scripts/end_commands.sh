# For scripts to source: a signal that only the shell gets ends it, and would leave its commands running.
end_commands() { { kill $(<"/proc/$$/task/$$/children") || true; } 2>/dev/null; }
