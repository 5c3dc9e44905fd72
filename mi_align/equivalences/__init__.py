"""The ledger of equivalences: claims as data, the engine that certifies them, the page that shows them."""
