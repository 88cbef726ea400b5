// Package fakecloud keeps the rules.
package fakecloud

import _ "headrace/router/endpoint"
