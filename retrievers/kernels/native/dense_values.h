// The numbers of dense rows, a vector at a time. Included inside the namespace of a simd_*.h.

template <int Size, Floats (*Decode)(const uint8_t*)>
struct Plain {
    static constexpr int size = Size;
    static inline Floats decode(const uint8_t* p, const float*) { return Decode(p); }
};
inline Floats f32_at(const uint8_t* p) {
    float out[kFloats];
    __builtin_memcpy(out, p, sizeof out);
    return load_floats(out);
}
inline Floats f16_at(const uint8_t* p) { return from_f16(p); }
inline Floats bf16_at(const uint8_t* p) { return from_bf16(p); }
struct Affine {
    static constexpr int size = 1;
    static inline Floats decode(const uint8_t* p, const float* l) { return fma(from_u8(p), set1(l[0]), set1(l[1])); }
};
struct Levels16 {
    static constexpr int size = 1;
    static inline Floats decode(const uint8_t* p, const float* l) { return from_levels16(p, l); }
};
struct Levels {
    static constexpr int size = 1;
    static inline Floats decode(const uint8_t* p, const float* l) { return from_levels(p, l); }
};

// Decode a vector that may reach beyond the row: what lies there counts as zero.
template <class V>
inline Floats decode_part(const uint8_t* p, int64_t left, const float* levels) {
    if (left >= kFloats) return V::decode(p, levels);
    uint8_t bytes[kFloats * V::size] = {};
    for (int64_t i = 0; i < left * V::size; ++i) bytes[i] = p[i];
    float out[kFloats];
    store_floats(out, V::decode(bytes, levels));
    for (int64_t i = left; i < kFloats; ++i) out[i] = 0;
    return load_floats(out);
}

// Decodes several vectors at once, for a scan of one query.
template <class V>
class Line {
  public:
    static constexpr int vectors = 2;
    explicit Line(const float* levels) : levels_(levels) {}
    void decode(const uint8_t* p, Floats* out) const {
        for (int i = 0; i < vectors; ++i) out[i] = V::decode(p + i * kFloats * V::size, levels_);
    }

  private:
    const float* levels_;
};
