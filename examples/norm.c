/* The length of a vector; `hypot` is the host's, from libm. */
#include <math.h>

double norm(double x, double y)
{
    return hypot(x, y);
}
