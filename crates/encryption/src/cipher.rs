//! The ways to seal a value, each with its prefix: AES-GCM, AES-CBC, secretbox, and none.
//!
//! Layouts are upstream's (k8s.io/apiserver, storage/value/encrypt), so that a store can be read with the
//! configuration it was written with there: AES-GCM binds the value to its key in the store.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Key as BoxKey, XSalsa20Poly1305};

const GCM_NONCE_LEN: usize = 12;
const CBC_IV_LEN: usize = 16;
const BOX_NONCE_LEN: usize = 24;

/// A value could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The length of a secret does not fit the algorithm.
    #[error("the secret has {0} bytes, which the algorithm does not take")]
    SecretLength(usize),
    /// The bytes are damaged, or were sealed with another secret or for another key.
    #[error("the value is damaged, or was encrypted with another key")]
    Damaged,
    /// The machine gave no randomness, or the library refused.
    #[error("the value could not be encrypted")]
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Algorithm {
    Identity,
    AesGcm,
    AesCbc,
    Secretbox,
}

/// A named key with its algorithm.
#[derive(Clone)]
pub struct Cipher {
    algorithm: Algorithm,
    prefix: String,
    secret: Vec<u8>,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("Cipher").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Cipher {
    /// Values as they are.
    pub fn identity() -> Cipher {
        Cipher { algorithm: Algorithm::Identity, prefix: String::new(), secret: Vec::new() }
    }

    /// AES-GCM with a secret of 16 or 32 bytes.
    pub fn aes_gcm(name: &str, secret: Vec<u8>) -> Result<Cipher, CipherError> {
        Cipher::new(Algorithm::AesGcm, "aesgcm", name, secret, &[16, 32])
    }

    /// AES-CBC with PKCS#7 padding and a secret of 16, 24 or 32 bytes.
    pub fn aes_cbc(name: &str, secret: Vec<u8>) -> Result<Cipher, CipherError> {
        Cipher::new(Algorithm::AesCbc, "aescbc", name, secret, &[16, 24, 32])
    }

    /// XSalsa20 and Poly1305 with a secret of 32 bytes.
    pub fn secretbox(name: &str, secret: Vec<u8>) -> Result<Cipher, CipherError> {
        Cipher::new(Algorithm::Secretbox, "secretbox", name, secret, &[32])
    }

    fn new(
        algorithm: Algorithm,
        word: &str,
        name: &str,
        secret: Vec<u8>,
        lengths: &[usize],
    ) -> Result<Cipher, CipherError> {
        if !lengths.contains(&secret.len()) {
            return Err(CipherError::SecretLength(secret.len()));
        }
        Ok(Cipher { algorithm, prefix: format!("k8s:enc:{word}:v1:{name}:"), secret })
    }

    /// Whether a stored value says that it was sealed by this key.
    pub(crate) fn wrote(&self, stored: &[u8]) -> bool {
        match self.algorithm {
            Algorithm::Identity => !stored.starts_with(b"k8s:enc:"),
            _ => stored.starts_with(self.prefix.as_bytes()),
        }
    }

    /// Seals the value of a key of the store.
    pub(crate) fn seal(&self, key: &str, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        let mut out = self.prefix.clone().into_bytes();
        let failed = |_| CipherError::Failed;
        match self.algorithm {
            Algorithm::Identity => out.extend_from_slice(plain),
            Algorithm::AesGcm => {
                let mut nonce = [0; GCM_NONCE_LEN];
                aws_lc_rs::rand::fill(&mut nonce).map_err(failed)?;
                let mut body = plain.to_vec();
                self.gcm()?
                    .seal_in_place_append_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(key.as_bytes()),
                        &mut body,
                    )
                    .map_err(failed)?;
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&body);
            }
            Algorithm::AesCbc => {
                let mut iv = [0; CBC_IV_LEN];
                aws_lc_rs::rand::fill(&mut iv).map_err(failed)?;
                let mut body = plain.to_vec();
                let key = PaddedBlockEncryptingKey::cbc_pkcs7(self.block_key()?).map_err(failed)?;
                key.less_safe_encrypt(&mut body, EncryptionContext::Iv128(FixedLength::from(&iv)))
                    .map_err(failed)?;
                out.extend_from_slice(&iv);
                out.extend_from_slice(&body);
            }
            Algorithm::Secretbox => {
                let mut nonce = [0; BOX_NONCE_LEN];
                aws_lc_rs::rand::fill(&mut nonce).map_err(failed)?;
                let body =
                    self.secretbox_key().encrypt((&nonce).into(), plain).map_err(|_| CipherError::Failed)?;
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&body);
            }
        }
        Ok(out)
    }

    /// Opens a value that [`Cipher::wrote`].
    pub(crate) fn open(&self, key: &str, stored: &[u8]) -> Result<Vec<u8>, CipherError> {
        let sealed = stored.get(self.prefix.len()..).ok_or(CipherError::Damaged)?;
        let damaged = |_| CipherError::Damaged;
        match self.algorithm {
            Algorithm::Identity => Ok(sealed.to_vec()),
            Algorithm::AesGcm => {
                let (nonce, body) = sealed.split_at_checked(GCM_NONCE_LEN).ok_or(CipherError::Damaged)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(damaged)?;
                let mut body = body.to_vec();
                let len = self
                    .gcm()?
                    .open_in_place(nonce, Aad::from(key.as_bytes()), &mut body)
                    .map_err(damaged)?
                    .len();
                body.truncate(len);
                Ok(body)
            }
            Algorithm::AesCbc => {
                let (iv, body) = sealed.split_at_checked(CBC_IV_LEN).ok_or(CipherError::Damaged)?;
                let iv: &[u8; CBC_IV_LEN] = iv.try_into().map_err(|_| CipherError::Damaged)?;
                let mut body = body.to_vec();
                let key = PaddedBlockDecryptingKey::cbc_pkcs7(self.block_key()?).map_err(damaged)?;
                let context = DecryptionContext::Iv128(FixedLength::from(iv));
                let len = key.decrypt(&mut body, context).map_err(damaged)?.len();
                body.truncate(len);
                Ok(body)
            }
            Algorithm::Secretbox => {
                let (nonce, body) = sealed.split_at_checked(BOX_NONCE_LEN).ok_or(CipherError::Damaged)?;
                let nonce: &[u8; BOX_NONCE_LEN] = nonce.try_into().map_err(|_| CipherError::Damaged)?;
                self.secretbox_key().decrypt(nonce.into(), body).map_err(|_| CipherError::Damaged)
            }
        }
    }

    fn gcm(&self) -> Result<LessSafeKey, CipherError> {
        let algorithm = if self.secret.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
        let key = UnboundKey::new(algorithm, &self.secret).map_err(|_| CipherError::Failed)?;
        Ok(LessSafeKey::new(key))
    }

    fn block_key(&self) -> Result<UnboundCipherKey, CipherError> {
        let algorithm = match self.secret.len() {
            16 => &AES_128,
            24 => &AES_192,
            _ => &AES_256,
        };
        UnboundCipherKey::new(algorithm, &self.secret).map_err(|_| CipherError::Failed)
    }

    fn secretbox_key(&self) -> XSalsa20Poly1305 {
        // The length was checked when the cipher was made.
        XSalsa20Poly1305::new(BoxKey::from_slice(&self.secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_opens_what_it_sealed_and_nothing_else() {
        let all = [
            Cipher::identity(),
            Cipher::aes_gcm("a", vec![1; 32]).unwrap(),
            Cipher::aes_gcm("b", vec![2; 16]).unwrap(),
            Cipher::aes_cbc("c", vec![3; 24]).unwrap(),
            Cipher::secretbox("d", vec![4; 32]).unwrap(),
        ];
        for (i, cipher) in all.iter().enumerate() {
            let sealed = cipher.seal("/registry/secrets/n/x", b"plain text").unwrap();
            assert_eq!(all.iter().position(|c| c.wrote(&sealed)), Some(i));
            assert_eq!(cipher.open("/registry/secrets/n/x", &sealed).unwrap(), b"plain text");
            if i == 0 {
                continue;
            }
            assert!(!sealed.windows(5).any(|w| w == b"plain"));
            assert_ne!(sealed, cipher.seal("/registry/secrets/n/x", b"plain text").unwrap(), "fresh nonces");
            for at in [sealed.len() - 1, cipher.prefix.len() + 17] {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                // CBC has no authentication of its own: damage shows in the text or in the padding.
                assert_ne!(cipher.open("/registry/secrets/n/x", &damaged).as_deref(), Ok(&b"plain text"[..]));
            }
            for short in 0..sealed.len() - cipher.prefix.len() {
                let _ = cipher.open("/registry/secrets/n/x", &sealed[..cipher.prefix.len() + short]);
            }
        }
        let gcm = all[1].seal("/registry/secrets/n/x", b"v").unwrap();
        assert_eq!(all[1].open("/registry/secrets/n/y", &gcm), Err(CipherError::Damaged), "bound to its key");
        assert_eq!(Cipher::aes_gcm("x", vec![0; 24]).unwrap_err(), CipherError::SecretLength(24));
    }

    /// Prefix, nonce, body, tag.
    #[test]
    fn the_layout_is_upstreams() {
        let cipher = Cipher::aes_gcm("key1", vec![7; 32]).unwrap();
        let sealed = cipher.seal("k", b"data").unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:key1:"));
        assert_eq!(sealed.len(), b"k8s:enc:aesgcm:v1:key1:".len() + GCM_NONCE_LEN + 4 + 16);
    }
}
