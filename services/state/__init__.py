"""What a connection means: sessions, what each is owed, resume tokens, moves."""
