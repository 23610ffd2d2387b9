"""What benchmarks share: where records go, the arms of a concept, processes of one thread each."""
