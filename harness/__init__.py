"""An MLPerf-style LoadGen harness for large language models.

    python -m harness --scenario Offline

LoadGen issues queries to a SUT (package `sut`), which serves each on a replica and responds; this package runs tests
from start to finish and saves a result for each; everything else reads results.
"""

__version__ = "0.1.0"
