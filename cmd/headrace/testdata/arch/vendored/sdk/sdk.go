// Package sdk stands for the module of that name.
package sdk
