"""Load on an HTTP server: closed and open loop, from processes of their own."""
