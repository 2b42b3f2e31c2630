"""Credit for trainers that are not echelon's: TRL (`integrations.trl`) and verl (`integrations.verl`).

A rule of credit is given as a function of one `integrations.batch.Batch`, the same for both libraries;
`integrations.padded` turns their padded rows into packed items and back.
"""
