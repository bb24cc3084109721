"""What says how good answers are: judges of one protocol, and the files in which they leave what they said."""
