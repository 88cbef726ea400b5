// Package report says what a suite of simulated runs shows: the acceptance claims with their targets, and a page of charts.
//
// The charts are SVG written by this package rather than by a library: gonum.org/v1/plot, the one that is well kept and
// draws SVG without a browser, brings nine modules with PDF, fonts and LaTeX into the gateway's binary, and its text can
// neither follow the page's colours nor carry what a pointer shows.
package report
