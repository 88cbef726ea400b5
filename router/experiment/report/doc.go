// Package report tells what an experiment has shown: as a page that needs nothing else, as text, and as JSON, all of one Report.
package report
