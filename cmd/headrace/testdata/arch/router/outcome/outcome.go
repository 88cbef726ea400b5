// Package outcome keeps the rules.
package outcome
