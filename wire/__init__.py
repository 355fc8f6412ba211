"""The contract between compiler, fleet and agent: values and bytes, and no I/O."""
