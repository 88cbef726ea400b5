// Package fakecloud runs fake GPU hosts on real loopback sockets. Each answers as a vLLM server does
// behind OpenAI's API, at the speed of the hardware it pretends to be, keeps its own books of what it was
// asked and what it produced, and breaks in every way a rented host does, on command.
//
// Every answer is known beforehand: Token, Answer, Reasoning, Vector, Speech and Picture are pure functions
// of what was asked, so a lost, doubled or altered token is always found.
//
// Wire shapes follow vLLM's OpenAI server (github.com/vllm-project/vllm, vllm/entrypoints/openai).
package fakecloud
