"""The system under test: serves queries on replicas. Knows no LoadGen, no command line and no result files."""
