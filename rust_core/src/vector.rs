//! Loops compiled twice: for any processor of the architecture, and for the vector units most have.

/// Define functions whose body is also compiled for AVX2, and run as that where the processor has
/// it. Nothing but speed differs: Rust neither reorders sums of floats nor fuses a product with a sum, so
/// bodies of floats that are to be fast sum in lanes of their own. What bodies call must be inlined.
macro_rules! vectorised {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident $(<const $size:ident: usize>)? ($($argument:ident: $type:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$attribute])*
        fn $name $(<const $size: usize>)? ($($argument: $type),*) {
            #[inline(always)]
            fn portable $(<const $size: usize>)? ($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2 $(<const $size: usize>)? ($($argument: $type),*) {
                    portable $(::<$size>)? ($($argument),*);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    #[expect(unsafe_code, reason = "code compiled for AVX2 is called where it is there")]
                    // SAFETY: the processor was just asked, and the function needs nothing else.
                    unsafe {
                        avx2 $(::<$size>)? ($($argument),*);
                    }
                    return;
                }
            }
            portable $(::<$size>)? ($($argument),*);
        }
    )*};
}

pub(crate) use vectorised;
