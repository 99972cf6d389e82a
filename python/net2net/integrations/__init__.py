"""Growth inside other people's training loops. Each file needs the library that it is named after."""
