"""What is shown of a running VeilLink, over HTTP and on a terminal."""
