"""The claims, a module a topic; each exports `CLAIMS`."""
