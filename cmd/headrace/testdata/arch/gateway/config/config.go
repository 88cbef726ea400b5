// Package config keeps the rules.
package config

import _ "headrace/router/endpoint"
