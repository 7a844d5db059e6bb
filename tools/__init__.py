"""Scripts that maintain this repository: they render the pages of results/ and docs/ from the committed records."""
