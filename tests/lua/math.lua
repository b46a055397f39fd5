-- Numbers: libm, integers, and a generator with a seed.
for _, f in ipairs({"sin", "cos", "tan", "asin", "acos", "atan", "exp", "sqrt"}) do
    io.write(f, "=", string.format("%.17g", math[f](0.7)), " ")
end
print()
print(math.log(10), math.log(8, 2), math.log(1000, 10), 2 ^ 0.5, -7 // 2, -7 % 3, 7.5 % -2)
print(math.maxinteger, math.mininteger, math.huge, -math.huge, math.pi)
print(math.tointeger(3.0), math.type(1), math.type(1.0), math.ult(1, -1), math.fmod(-7, 3))
print(math.floor(-3.5), math.ceil(-3.5), math.abs(-4), math.max(1, 5, 3), math.min(2, 0))
print(7 & 3, 7 | 8, 5 ~ 1, ~0, 1 << 62, -1 >> 60, 1 << 64)
math.randomseed(42)
for _ = 1, 8 do io.write(math.random(1000), " ") end
print(string.format("%.17g", math.random()))
print(string.format("%.3f", 0 / 0):gsub("-", ""), math.huge - math.huge ~= 0)
