set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

# List the recipes
default:
    @just --list

# Run the tests; arguments go to pytest: `just test tests/data`, `just test -m "not slow"`
test *arguments:
    OMP_NUM_THREADS=1 uv run pytest -n auto --dist loadfile "$@"

# Check style and format
lint:
    uv run ruff check .
    uv run ruff format --check .

# Check types
types:
    uv run mypy

# Build the documentation, strictly
docs:
    uv run --group docs mkdocs build --strict

# Run a benchmark, as in `just bench inference --repetitions 1`
bench script *arguments:
    uv run python "experiments/benchmarks/$1.py" "${@:2}"

# Everything that CI runs
ci:
    bash .ci/run
