// Package openai reads and writes the wire shapes of OpenAI-compatible servers: it scans request
// bodies and splices them without re-encoding, reads what stream events and whole answers say of
// content, usage, finish and errors, and writes the one error shape that callers get.
//
// Request.Scan, Request.Parts, Chunk.Parse and Chunk.ParseBody sit on the path of every request or
// token: they allocate nothing for ordinary input. Everything else runs once per error or listing.
package openai
