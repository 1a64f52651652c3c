"""Networks by name, those that timm lacks, and their weight files."""
