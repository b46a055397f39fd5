-- Ten million steps.
local x, s = 0.5, 0
for i = 1, 1e7 do
    s = s + (i & 7)
    x = x * 3.7 * (1 - x)
end
print(s, string.format("%.17g", x))
