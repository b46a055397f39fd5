-- The string library, utf8, and what it asks of the host's printf and locale.
print(string.format("%5d|%-5s|%05.2f|%x|%q|%g|%e|%a", 42, "ab", 3.14159, 255, 'a "b"\n', 1e100, 12345.678, 0.5))
print(string.format("%s %s %s %i %c%%", nil, true, {} ~= nil, -7, 65))
print(("hello world"):find("o w"), ("hello"):find("l+"), ("a.b"):find(".", 2, true))
print(("key = value"):match("^(%w+)%s*=%s*(%w+)$"))
print(("the cat sat"):gsub("%a+", function(w) return w:upper():reverse() end))
print(("x"):rep(10, "-"), ("abc"):byte(1, -1), string.char(72, 105))
for word, digits in ("ab12 cd345"):gmatch("(%a+)(%d+)") do io.write(word, ":", digits, ";") end
print()
print(string.pack("<i4d", 7, 1.5):byte(1, -1))
print(string.unpack("<i4d", string.pack("<i4d", -7, 2.25)))
print(utf8.char(228, 8364, 128512), utf8.len("äöü"), #"äöü")
for _, c in utf8.codes("aä€") do io.write(c, " ") end
print()
print(tostring(1e15), tostring(2^53), 10 // 3, 10.0 / 3, "10" + 5, 0x7fffffffffffffff + 1)
print(load(string.dump(function(x) return x .. "!" end))("dumped"))
