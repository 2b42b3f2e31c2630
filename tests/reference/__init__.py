"""Independent float64 references: written from the published formulas, never from the package under test."""
