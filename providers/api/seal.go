package api

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"

	"headrace/router/endpoint"
)

// Seal encrypts what replicas of one account share: what clouds answer holds keys of hosts. Only those that have the account's key
// can Open it, and only as what it was sealed: another use, another what.
func Seal(key endpoint.Secret, what string, plain []byte) ([]byte, error) {
	a, err := aead(key, what)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, plain, nil), nil
}

// Open decrypts what Seal has made. The error says that it was another key, another use, or none of Seal's.
func Open(key endpoint.Secret, what string, sealed []byte) ([]byte, error) {
	a, err := aead(key, what)
	if err != nil {
		return nil, err
	}
	return a.Open(nil, nil, sealed, nil)
}

func aead(key endpoint.Secret, what string) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, []byte(key.Reveal()), nil, what, 32)
	if err != nil {
		return nil, err
	}
	b, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}
