"""Your own binary network, written exercise by exercise."""
