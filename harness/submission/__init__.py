"""A package for MLCommons: its tree, how it is written, and what is wrong with one."""
